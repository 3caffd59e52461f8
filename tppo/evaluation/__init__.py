"""Evaluation of language models by repeated sampling: resumable, every generation kept, every score with intervals."""
