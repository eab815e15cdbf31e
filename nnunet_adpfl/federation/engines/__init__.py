"""Engines carry tasks to sites and bring updates back; nothing else. `rounds` does not know which one it uses."""
