"""Money that moves, or need not: payment files, bank statements, matching, set-off (docs/settlement/payments.md).

Reading, writing and deciding are functions of what they are given. The only I/O is `files.write_new`.
"""
