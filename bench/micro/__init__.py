"""One file per part. `operations()` gives, by label, what to call and how many operations one call is."""
