"""The object store: frames, crops and detection results, in a folder or in S3."""
