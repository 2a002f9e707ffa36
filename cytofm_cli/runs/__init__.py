"""RUN folders: their records, and where results come from."""
