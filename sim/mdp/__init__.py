"""Decision processes over tokens: one `table`, `families` of tables, and Gymnasium environments over them (`env`)."""
