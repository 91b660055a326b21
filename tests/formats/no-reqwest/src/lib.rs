//! What the build script of `cmw` 0.1 names of the HTTP client `reqwest`. Every request fails.

/// The blocking client.
pub mod blocking {
    use std::convert::Infallible;
    use std::io::{self, Empty, Error, Read};

    /// A client that reaches nothing.
    pub struct Client;

    /// A response, of which there is none.
    pub struct Response(Infallible, Empty);

    impl Client {
        /// Begins a client.
        pub fn builder() -> Self {
            Self
        }

        /// Takes a name for the client, and ignores it.
        #[must_use]
        pub fn user_agent(self, _: &str) -> Self {
            self
        }

        /// Completes the client.
        pub fn build(self) -> io::Result<Self> {
            Ok(self)
        }

        /// Begins a request.
        #[must_use]
        pub fn get(&self, _: &str) -> Self {
            Self
        }

        /// Fails.
        pub fn send(self) -> io::Result<Response> {
            Err(Error::other("this client has no network"))
        }
    }

    impl Response {
        /// Yields the response itself.
        pub fn error_for_status(self) -> io::Result<Self> {
            Ok(self)
        }
    }

    impl Read for Response {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1.read(buffer)
        }
    }
}
