"""What must not be lost: every signed record, in the exact bytes that were signed, durable before it is acted on."""
