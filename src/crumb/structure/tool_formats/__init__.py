"""How families of models write tool calls: one file for each, found by table.py."""
