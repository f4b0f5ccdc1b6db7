"""Serves a model over HTTP with the APIs of OpenAI and Anthropic."""
