"""Policies and critics behind one interface: tables and transformers."""
