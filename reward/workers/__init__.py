"""The processes that replay: one server a machine, its workers, and how a client reaches it."""
