//! The one request that all routes of conversations come down to.

use super::{
    Checked, Context, Target,
    conversation::{self, Opening},
    prompt::Encoding,
    sampling::{Length, Parameters},
    tools::Tools,
    variables::Variables,
};
use crate::{chat::Message, http::error::ApiError};

/// A conversation to answer.
pub struct Chat {
    pub target: Target,
    pub messages: Vec<Message>,
    pub variables: Variables,
    pub opening: Opening,
    pub encoding: Encoding,
    pub tools: Tools,
    pub length: Length,
    pub parameters: Parameters,
}

impl Chat {
    /// The checked request: tools offered to the template and held to, the conversation rendered.
    pub fn into_checked(self, context: &Context<'_>) -> Result<Checked, ApiError> {
        let Self { messages, mut variables, opening, encoding, tools, length, .. } = self;
        let mut parameters = self.parameters;
        let mut calls = None;
        if let Some((described, format)) = tools.offered(context.served)? {
            variables.offer(described);
            let (read, asked) = tools.constrain(format, parameters.constraint.as_ref())?;
            (calls, parameters.constraint) = (Some(read), Some(asked));
        }
        let encoder = encoding.within(context, parameters.timeout);
        let prompt = conversation::prompt(&encoder, messages, variables, opening)?;
        let checked = parameters.into_checked(context, self.target, vec![prompt], length)?;
        Ok(Checked { calls, ..checked })
    }
}
