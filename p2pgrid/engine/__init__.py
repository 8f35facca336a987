"""The inference engine behind a provider: vLLM as a child process or at a URL, and a fake of it for tests."""
