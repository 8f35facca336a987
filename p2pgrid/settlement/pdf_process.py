"""A process that takes `factur-x.xml` out of a PDF from a peer: the PDF on standard input, the XML on standard output.

It may be killed by what it reads: nothing else is in it. Memory and time are bounded, so that a PDF which unpacks to
gigabytes ends this process and not the node. Imports nothing of the package: it is run as a file.
"""

from __future__ import annotations

import contextlib
import io
import sys

NO_LIBRARY = 3
REFUSED = 4
MEMORY_BYTES = 1 << 30
CPU_S = 15
NAMES = ("factur-x.xml", "xrechnung.xml", "zugferd-invoice.xml")


def main() -> int:
    """Exit code 0, or one of those above with a sentence on standard error."""
    most = int(sys.argv[1])
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every platform
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    try:
        import pikepdf
    except ImportError:
        return NO_LIBRARY
    data = sys.stdin.buffer.read(most + 1)
    try:
        with pikepdf.open(io.BytesIO(data)) as pdf:
            found = [name for name in pdf.attachments if name in NAMES]
            if len(found) != 1:
                return _refused(f"{len(found)} files in it are named as an invoice's XML is; one was expected")
            xml = pdf.attachments[found[0]].get_file().read_bytes()
    except (pikepdf.PdfError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, MemoryError) as error:
        return _refused(f"it cannot be opened: {str(error)[:100] or type(error).__name__}")
    if len(xml) > most:
        return _refused(f"the XML in it has {len(xml)} bytes")
    sys.stdout.buffer.write(xml)
    sys.stdout.buffer.flush()
    return 0


def _refused(why: str) -> int:
    sys.stderr.write(why)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
