"""The rules, without I/O: what is signed, what it means, who may say what next. Time and randomness are arguments."""
