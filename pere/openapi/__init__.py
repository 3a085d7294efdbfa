"""What programs may know of the server: OpenAPI 3.1 of what it can be asked, AsyncAPI 3.0 of what it says by itself."""
