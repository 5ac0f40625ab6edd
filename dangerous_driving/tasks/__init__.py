"""Detection results become assessment tasks, in the ledger and on the topic."""
