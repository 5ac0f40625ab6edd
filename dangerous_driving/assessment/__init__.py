"""Assessment: prompts, key pool, LLM client, answer parsing, scheduler."""
