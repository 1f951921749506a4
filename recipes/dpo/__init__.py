"""DPO with TRL: the pairs, and the trainer."""
