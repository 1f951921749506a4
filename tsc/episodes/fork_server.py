"""What the fork server of tsc.episodes.runner loads before it forks workers. No other process imports this module.

A fork server outlives a killed parent as long as one of its workers runs, and its workers outlive the parent with it.
"""

import os

import tsc.episodes.runner  # noqa: F401  (so that workers find it loaded)
from tsc.processes import die_with_parent

die_with_parent(os.getppid())
