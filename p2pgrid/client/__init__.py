"""The buyer: which provider to choose, the session with it, the Python client and the OpenAI gateway."""
