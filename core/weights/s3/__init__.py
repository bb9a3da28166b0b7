"""Models in S3, or in a store that speaks its protocol: `s3://bucket/prefix`, `s3://bucket/path/file.gguf`.

A copy lies in the same cache as the hub's models. Its objects are fetched in parts, many at a time; what a cut
connection or an ended process had left is not fetched again; a file appears under its name once its checksum is right.
"""

from core.weights.s3.model import download_file, download_model

__all__ = ["download_file", "download_model"]
