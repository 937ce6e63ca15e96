"""Measurements that a claim of this project rests on, each a command that anybody can run again."""
