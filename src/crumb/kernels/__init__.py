"""The Python face of the native core, with a plain reference beside each kernel."""
