"""The object store: S3 or a directory, spoken to by a process of its own."""
