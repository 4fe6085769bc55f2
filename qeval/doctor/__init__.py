"""Whether what is installed works here."""
