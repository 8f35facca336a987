"""For accountants: signed records as double entry, exports, the yearly archive, retention (docs/settlement/books.md).

Pure but for `personal`, `archive`, `verify` and `expired`, which touch files.
"""
