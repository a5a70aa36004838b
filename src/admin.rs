//! Nodes as their administrator meets them: for the command's verbs that declare nodes. No part of the library's interface.

use crate::builder::Builder;
use crate::error::{ConfigError, NodeError};
use crate::node;
use crate::resource::LIST;

pub use crate::node::admin::{ANSWER_LIMIT, CHANGING, Declared, Node, RECORD, holder_of};

/// Connects to every node of the builder's list, in its order. Each may take the builder's node timeout, and without one
/// [`ANSWER_LIMIT`], to be connected to, and as long for each answer.
///
/// # Errors
///
/// [`ConfigError`] for settings that cannot work. A node that cannot be reached, or can have no vote, is part of the answer.
pub async fn connect(builder: &Builder) -> Result<Vec<(String, Result<Node, NodeError>)>, ConfigError> {
    let (settings, addresses) = builder.checked()?;
    let list_key = [LIST, &settings.prefix].concat();
    let limit = settings.fixed_node_timeout.unwrap_or(ANSWER_LIMIT);
    Ok(node::admin::connect(addresses, &list_key, limit, &builder.machine().await?).await)
}
