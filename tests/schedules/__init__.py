"""Tests of schedules: times, rules, and processes that share them."""
