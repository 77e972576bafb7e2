"""Request and response bodies of the file operations (FirecREST 2.5.7's OpenAPI document)."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class CamelModel(BaseModel):
    """camelCase outside, snake_case inside; both are read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class FilesystemRequest(CamelModel):
    """A body that names a path; the server reads ``path``, ``sourcePath`` and ``source_path``."""

    path: str | None = Field(validation_alias=AliasChoices("sourcePath", "source_path", "path"))

    @property
    def source(self) -> str:
        """The path; the dependency that runs before has refused a missing one."""
        return self.path or ""


class ContentUnit(StrEnum):
    """What ``startPosition`` and ``endPosition`` count."""

    lines = "lines"
    bytes = "bytes"


class CompressionType(StrEnum):
    """Kinds of archives."""

    none = "none"
    bzip2 = "bzip2"
    gzip = "gzip"
    xz = "xz"


class File(CamelModel):
    """One line of ``ls -l``. ``size`` is a string; ``lastModified`` is local time without a zone."""

    name: str
    type: str
    link_target: str | None = None
    user: str
    group: str
    permissions: str
    last_modified: str
    size: str


class FileContent(CamelModel):
    """A part of a file as text."""

    content: str
    content_type: ContentUnit
    start_position: int
    end_position: int


class FileChecksum(CamelModel):
    """A checksum in hexadecimal."""

    algorithm: str = "SHA-256"
    checksum: str


class FileStat(CamelModel):
    """The numbers of ``stat``; times in seconds since the epoch."""

    mode: int
    ino: int
    dev: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime: int
    ctime: int
    mtime: int


class GetDirectoryLsResponse(CamelModel):
    """Answer of ``ls``."""

    output: list[File] | None = None


class FileResponse(CamelModel):
    """Answer of mkdir, chmod, chown and symlink: the line of ``ls -d`` afterwards."""

    output: File | None = None


class FileContentResponse(CamelModel):
    """Answer of head and tail."""

    output: FileContent | None = None


class GetFileChecksumResponse(CamelModel):
    """Answer of checksum."""

    output: FileChecksum | None = None


class TextResponse(CamelModel):
    """Answer of view and file."""

    output: str | None = None


class GetFileStatResponse(CamelModel):
    """Answer of stat."""

    output: FileStat | None = None


class PutFileChmodRequest(FilesystemRequest):
    """Body of chmod."""

    mode: str = Field(description="Mode in octal permission format")


class PutFileChownRequest(FilesystemRequest):
    """Body of chown."""

    owner: str = Field(default="", description="User name of the new user owner of the file")
    group: str = Field(default="", description="Group name of the new group owner of the file")


class PostMakeDirRequest(FilesystemRequest):
    """Body of mkdir."""

    parent: bool = Field(default=False, description="Also create the parent directories that do not exist")


class PostFileSymlinkRequest(FilesystemRequest):
    """Body of symlink."""

    link_path: str = Field(description="Path to the new symlink")


class PostCompressRequest(FilesystemRequest):
    """Body of compress."""

    target_path: str = Field(description="Path to the compressed file")
    match_pattern: str | None = Field(default=None, description="Regex pattern to filter files to compress")
    dereference: bool = Field(default=False, description="Archive what symbolic links point to")
    compression: CompressionType = CompressionType.gzip


class PostExtractRequest(FilesystemRequest):
    """Body of extract."""

    target_path: str = Field(description="Path to the directory where to extract the compressed file")
    compression: CompressionType = CompressionType.gzip
