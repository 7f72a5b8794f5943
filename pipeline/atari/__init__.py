"""The world: the only package that imports gymnasium and ale_py."""
