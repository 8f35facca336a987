"""E-invoices after EN 16931 (docs/settlement/invoices.md).

`vat` says how a supply is taxed, `document` makes an invoice of a statement, `cii`, `ubl` and `factur_x` write it,
`issue` writes and validates together: no file leaves this room unchecked.
"""
