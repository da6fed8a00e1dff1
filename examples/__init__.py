"""Crews to start from."""
