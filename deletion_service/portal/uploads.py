"""Uploads stay in memory, and all files of one request together stay below a bound. Nothing touches a disk."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import InMemoryUploadedFile
from django.core.files.uploadhandler import FileUploadHandler, SkipFile


class BoundedMemoryUpload(FileUploadHandler):
    """Collects files in memory; a file that would exceed the bound counts as not sent."""

    def __init__(self, request: Any = None) -> None:
        super().__init__(request)
        self._taken = 0
        self._content = BytesIO()

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Begin the next file."""
        super().new_file(*args, **kwargs)
        self._content = BytesIO()

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        """Take a chunk, or drop the file."""
        self._taken += len(raw_data)
        if self._taken > settings.UPLOAD_MAX_BYTES:
            raise SkipFile
        self._content.write(raw_data)

    def file_complete(self, file_size: int) -> InMemoryUploadedFile:
        """Return the file. What it is called on the sender's machine is not kept."""
        self._content.seek(0)
        return InMemoryUploadedFile(
            file=self._content,
            field_name=self.field_name,
            name="upload",
            content_type="application/octet-stream",
            size=file_size,
            charset=None,
        )
