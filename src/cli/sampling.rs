//! Flags that say how tokens are chosen; llama.cpp's names, with transformers' and OpenAI's as aliases.

use crate::text::generation_config::Overrides;
use crate::{Error, Result};

/// How tokens are chosen. Flatten it into a command's `Args`.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Sampling [default: the model's own settings]")]
pub struct SamplingArgs {
    /// Most new tokens of an answer
    #[arg(short = 'n', long, visible_alias = "max-new-tokens", value_name = "N")]
    pub max_tokens: Option<usize>,
    /// 0 takes the likeliest token always
    #[arg(long, visible_alias = "temperature", value_name = "T")]
    pub temp: Option<f32>,
    /// Choose among the k likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that have this probability together
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Choose among tokens at least this likely relative to the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Choose among tokens whose surprise is nearest to what is expected, with this probability together
    #[arg(long, visible_alias = "typical-p", value_name = "P")]
    pub typical: Option<f32>,
    /// Makes tokens that were used less likely; 1 is off
    #[arg(long, visible_alias = "repetition-penalty", value_name = "R")]
    pub repeat_penalty: Option<f32>,
    /// Tokens that the penalties look back on [default: 64]
    #[arg(long, value_name = "N")]
    pub repeat_last_n: Option<usize>,
    /// Subtracted from the logits of tokens that were used
    #[arg(long, value_name = "X")]
    pub presence_penalty: Option<f32>,
    /// Subtracted for each time a token was used
    #[arg(long, value_name = "X")]
    pub frequency_penalty: Option<f32>,
    /// Added to the logit of a token; -inf forbids it. May be repeated
    #[arg(short = 'l', long, value_name = "ID=BIAS", value_parser = parse_bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the choices: the same seed gives the same text
    #[arg(short, long)]
    pub seed: Option<u64>,
    /// End the answer before this text. May be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Report the log-probabilities of so many candidates for each token (with --json)
    #[arg(long, value_name = "N")]
    pub logprobs: Option<usize>,
}

impl SamplingArgs {
    /// The same as the library takes it.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical_p: self.typical,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            penalty_last_n: self.repeat_last_n,
            seed: self.seed,
            max_new_tokens: self.max_tokens,
            logit_bias: self.logit_bias.clone(),
            top_logprobs: self.logprobs.unwrap_or(0),
            stop: self.stop.clone(),
        }
    }
}

fn parse_bias(text: &str) -> Result<(u32, f32)> {
    let parts = text.split_once('=').map(|(id, bias)| (id.trim().parse(), bias.trim().parse()));
    match parts {
        Some((Ok(id), Ok(bias))) => Ok((id, bias)),
        _ => Err(Error::Usage(format!("`{text}` is no ID=BIAS; write 15043=-2.5 or 15043=-inf"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_read() {
        assert_eq!(parse_bias("7=-1.5").unwrap(), (7, -1.5));
        assert_eq!(parse_bias("7 = -inf").unwrap(), (7, f32::NEG_INFINITY));
        for bad in ["", "7", "x=1", "7=", "-7=1"] {
            assert!(parse_bias(bad).unwrap_err().to_string().contains("15043"), "{bad}");
        }
    }
}
