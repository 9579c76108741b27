//! What the tokens of a request say, once they were checked.

use std::sync::Arc;

use super::Claims;

/// The tokens of a request that hold, in the order in which they were found to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens(Vec<Token>);

/// A token that holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Token {
    /// The provider whose it is.
    pub provider: Arc<str>,
    /// Key under which conditions on metadata find it; empty = none.
    pub key: Arc<str>,
    /// What it says.
    pub claims: Arc<Claims>,
    /// The same, as conditions on metadata find it.
    payload: Arc<Claims>,
}

impl Token {
    pub(crate) fn new(provider: &Arc<str>, key: &Arc<str>, claims: Arc<Claims>) -> Self {
        Self { provider: provider.clone(), key: key.clone(), payload: claims.clone(), claims }
    }

    /// What it says, as conditions on metadata find it.
    pub(crate) fn payload(&self) -> &Claims {
        &self.payload
    }

    /// Claims of these names are lists of words to conditions on metadata.
    pub(super) fn split(mut self, names: &[String]) -> Self {
        if let Some(payload) = self.claims.split(names) {
            self.payload = Arc::new(payload);
        }
        self
    }
}

impl Tokens {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Token> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The claims of the first: the caller's, where somebody means just one.
    pub fn first(&self) -> Option<&Arc<Claims>> {
        self.0.first().map(|token| &token.claims)
    }

    /// The claims of a provider's.
    pub fn of(&self, provider: &str) -> Option<&Arc<Claims>> {
        self.0.iter().find(|token| &*token.provider == provider).map(|token| &token.claims)
    }
}

impl FromIterator<Token> for Tokens {
    fn from_iter<I: IntoIterator<Item = Token>>(tokens: I) -> Self {
        Self(tokens.into_iter().collect())
    }
}

impl Extend<Token> for Tokens {
    fn extend<I: IntoIterator<Item = Token>>(&mut self, tokens: I) {
        self.0.extend(tokens);
    }
}
