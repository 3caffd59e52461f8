"""Studies, one a file; `tppo study list` names them."""
