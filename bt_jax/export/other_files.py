"""Recognises, by their first bytes, files that are not weights but are often mistaken for them."""

_BEGINNINGS = (
    (b"version https://git-lfs", "a pointer of git-lfs, not the file itself; get that with git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"BZh", "compressed by bzip2; unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file, such as Keras writes"),
    (b"\x93NUMPY", "a NumPy array"),
)
START = 512  # bytes that `other_kind` needs


def other_kind(start: bytes) -> str | None:
    """The kind of a file that cannot be weights, with advice; None if it may be weights.

    Args:
      start: its first `START` bytes.
    """
    for beginning, what in _BEGINNINGS:
        if start.startswith(beginning):
            return what
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        return "a web page (HTML or XML) instead of the file; download it again"
    return None
