"""The structure of an answer: grammars it is held to, tool calls and reasoning in its text."""
