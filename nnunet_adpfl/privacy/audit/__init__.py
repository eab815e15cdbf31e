"""Empirical audit: an adversary attacks the shipped mechanism, and what it achieves bounds epsilon from below.

It can show that a claim is false. It cannot show that one is true: that is the accounting's part. See docs/audit.md.
"""
