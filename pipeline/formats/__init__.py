"""Formats of files that users bring, by kind."""
