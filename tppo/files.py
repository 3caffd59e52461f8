import os


def write_whole(path, data):
    partial = path.with_suffix(".partial"); partial.write_bytes(data); os.replace(partial, path)
