"""The processes that replay: one server on each machine, its workers, and the client's side."""
