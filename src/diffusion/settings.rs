//! What a `parameters` text says, in types: the fields of AUTOMATIC1111's infotext, old and new.

use super::infotext::Infotext;

/// The fields that this engine knows; all others are kept as they stand in [`Settings::other`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    pub prompt: String,
    pub negative_prompt: String,
    pub steps: Option<usize>,
    /// AUTOMATIC1111's name of the sampler, without its schedule.
    pub sampler: Option<String>,
    /// `Schedule type`, or what old files have at the end of the sampler's name. None: the sampler's own
    /// (`Automatic`).
    pub schedule: Option<String>,
    pub cfg_scale: Option<f64>,
    pub seed: Option<u64>,
    /// Width and height in pixels.
    pub size: Option<(usize, usize)>,
    /// First ten hexadecimal digits of the file's SHA-256 (eight of another hash in very old files).
    pub model_hash: Option<String>,
    pub model: Option<String>,
    pub vae: Option<String>,
    pub denoising_strength: Option<f64>,
    /// 1 and absent are the same: the last layer.
    pub clip_skip: Option<usize>,
    /// Where the noise came from: `GPU` (and absent), `CPU` or `NV`.
    pub rng: Option<String>,
    pub eta: Option<f64>,
    /// Name and hash of each LoRA, and of each embedding.
    pub lora_hashes: Vec<(String, String)>,
    pub ti_hashes: Vec<(String, String)>,
    pub batch_size: Option<usize>,
    /// Place in the batch, from 0.
    pub batch_pos: Option<usize>,
    pub version: Option<String>,
    pub other: Vec<(String, String)>,
}

/// What old files have behind the sampler's name.
const SCHEDULES: [&str; 4] = ["Karras", "Exponential", "Polyexponential", "SGM Uniform"];

impl Settings {
    /// The fields of a text. One that cannot be read as what it should be stays in
    /// [`Settings::other`].
    pub fn of(info: &Infotext) -> Settings {
        let mut settings = Settings {
            prompt: info.prompt.clone(),
            negative_prompt: info.negative_prompt.clone(),
            ..Settings::default()
        };
        for (key, value) in &info.fields {
            if settings.take(key, value).is_none() {
                settings.other.push((key.clone(), value.clone()));
            }
        }
        settings
    }

    /// Reads a text; see [`Infotext::parse`].
    pub fn parse(text: &str) -> Settings {
        Settings::of(&Infotext::parse(text))
    }

    /// Whether there is anything but a prompt.
    pub fn has_fields(&self) -> bool {
        let own = Settings {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            ..Settings::default()
        };
        *self != own
    }

    /// Takes a field; None if it is unknown, twice there, or not of its type.
    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "Steps" => set(&mut self.steps, value.parse().ok()),
            "Sampler" => {
                let (sampler, schedule) = split_schedule(value);
                set(&mut self.sampler, Some(sampler.to_string()))?;
                // A field of its own counts more than the end of a name.
                self.schedule = self.schedule.take().or(schedule.map(str::to_string));
                Some(())
            }
            "Schedule type" => {
                if value != "Automatic" {
                    self.schedule = Some(value.to_string());
                }
                Some(())
            }
            "CFG scale" => set(&mut self.cfg_scale, number(value)),
            "Seed" => set(&mut self.seed, value.parse().ok()),
            "Size" => {
                let size = value.split_once('x');
                set(
                    &mut self.size,
                    size.and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?))),
                )
            }
            "Model hash" => set(&mut self.model_hash, text(value)),
            "Model" => set(&mut self.model, text(value)),
            "VAE" => set(&mut self.vae, text(value)),
            "Denoising strength" => set(&mut self.denoising_strength, number(value)),
            "Clip skip" => set(&mut self.clip_skip, value.parse().ok()),
            "RNG" => set(&mut self.rng, text(value)),
            "Eta" => set(&mut self.eta, number(value)),
            "Lora hashes" => hashes(&mut self.lora_hashes, value),
            "TI hashes" => hashes(&mut self.ti_hashes, value),
            "Batch size" => set(&mut self.batch_size, value.parse().ok()),
            "Batch pos" => set(&mut self.batch_pos, value.parse().ok()),
            "Version" => set(&mut self.version, text(value)),
            _ => None,
        }
    }

    /// The text's parts with fields in AUTOMATIC1111's order, [`Settings::other`] before `Version`. A
    /// Clip skip of 1 is left out, as there.
    pub fn infotext(&self) -> Infotext {
        fn show<T: ToString>(value: &Option<T>) -> Option<String> {
            value.as_ref().map(T::to_string)
        }
        let joined = |hashes: &[(String, String)]| {
            let all: Vec<String> = hashes.iter().map(|(n, h)| format!("{n}: {h}")).collect();
            (!all.is_empty()).then(|| all.join(", "))
        };
        let clip_skip = self.clip_skip.filter(|skip| *skip > 1);
        let fields = [
            ("Steps", show(&self.steps)),
            ("Sampler", self.sampler.clone()),
            ("Schedule type", self.schedule.clone()),
            ("CFG scale", show(&self.cfg_scale)),
            ("Seed", show(&self.seed)),
            ("Size", self.size.map(|(width, height)| format!("{width}x{height}"))),
            ("Model hash", self.model_hash.clone()),
            ("Model", self.model.clone()),
            ("VAE", self.vae.clone()),
            ("Batch size", show(&self.batch_size)),
            ("Batch pos", show(&self.batch_pos)),
            ("Denoising strength", show(&self.denoising_strength)),
            ("Clip skip", show(&clip_skip)),
            ("RNG", self.rng.clone()),
            ("Eta", show(&self.eta)),
            ("Lora hashes", joined(&self.lora_hashes)),
            ("TI hashes", joined(&self.ti_hashes)),
        ];
        let mut info = Infotext::new(self.prompt.clone(), self.negative_prompt.clone());
        for (key, value) in fields {
            if let Some(value) = value {
                info = info.with(key, value);
            }
        }
        for (key, value) in &self.other {
            info = info.with(key, value);
        }
        match &self.version {
            Some(version) => info.with("Version", version),
            None => info,
        }
    }
}

/// `DPM++ 2M Karras` → `DPM++ 2M` and `Karras`.
fn split_schedule(name: &str) -> (&str, Option<&'static str>) {
    let split = |schedule: &'static str| {
        let rest = name.strip_suffix(schedule)?.strip_suffix(' ')?;
        Some((rest, Some(schedule)))
    };
    SCHEDULES.into_iter().find_map(split).unwrap_or((name, None))
}

fn set<T>(place: &mut Option<T>, value: Option<T>) -> Option<()> {
    if place.is_some() {
        return None;
    }
    *place = Some(value?);
    Some(())
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_string())
}

fn number(value: &str) -> Option<f64> {
    value.parse().ok().filter(|number: &f64| number.is_finite())
}

/// `name: hash, name: hash`
fn hashes(place: &mut Vec<(String, String)>, value: &str) -> Option<()> {
    let pair = |part: &str| {
        let (name, hash) = part.trim().rsplit_once(':')?;
        Some((name.trim().to_string(), hash.trim().to_string()))
    };
    let read: Vec<_> = value.split(',').map(pair).collect::<Option<_>>()?;
    if !place.is_empty() {
        return None;
    }
    *place = read;
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    fn word(text: &str) -> Option<String> {
        Some(text.to_string())
    }

    /// The form of version 1.9 and later: the schedule has a field, hashes are quoted.
    #[test]
    fn the_new_form_is_read() {
        let text = "masterpiece, (a lighthouse:1.2), storm\nBREAK night <lora:ink:0.8>\n\
            Negative prompt: lowres, (blurry:1.1),\nEasyNegative\n\
            Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 3456789012, \
            Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, VAE hash: 735e4c3a44, \
            VAE: vae-ft-mse-840000.safetensors, Denoising strength: 0.45, Clip skip: 2, RNG: CPU, \
            Hires upscale: 2, Hires upscaler: Latent, Lora hashes: \"ink: 0a1b2c3d4e5f, other: 99\", \
            TI hashes: \"EasyNegative: c74b4e810b03\", Version: v1.9.4";
        let settings = Settings::parse(text);
        let expected = Settings {
            prompt: "masterpiece, (a lighthouse:1.2), storm\nBREAK night <lora:ink:0.8>".into(),
            negative_prompt: "lowres, (blurry:1.1),\nEasyNegative".into(),
            steps: Some(20),
            sampler: word("DPM++ 2M"),
            schedule: word("Karras"),
            cfg_scale: Some(7.0),
            seed: Some(3456789012),
            size: Some((512, 768)),
            model_hash: word("6ce0161689"),
            model: word("v1-5-pruned-emaonly"),
            vae: word("vae-ft-mse-840000.safetensors"),
            denoising_strength: Some(0.45),
            clip_skip: Some(2),
            rng: word("CPU"),
            lora_hashes: pairs(&[("ink", "0a1b2c3d4e5f"), ("other", "99")]),
            ti_hashes: pairs(&[("EasyNegative", "c74b4e810b03")]),
            version: word("v1.9.4"),
            other: pairs(&[
                ("VAE hash", "735e4c3a44"),
                ("Hires upscale", "2"),
                ("Hires upscaler", "Latent"),
            ]),
            ..Settings::default()
        };
        assert_eq!(settings, expected);
        assert_eq!(Settings::of(&settings.infotext()), settings);
    }

    /// The form of 2022 and 2023: the schedule is a part of the sampler's name.
    #[test]
    fn the_old_form_is_read() {
        let settings = Settings::parse(
            "a cat\nNegative prompt: dog\nSteps: 28, Sampler: DPM++ 2M SDE Karras, CFG scale: 7.5, \
             Seed: 1, Size: 640x512, Model hash: 7460a6fa, Batch size: 4, Batch pos: 2, Eta: 0.67, \
             ENSD: 31337",
        );
        assert_eq!(settings.sampler, word("DPM++ 2M SDE"));
        assert_eq!(settings.schedule, word("Karras"));
        assert_eq!(settings.size, Some((640, 512)));
        assert_eq!((settings.batch_size, settings.batch_pos), (Some(4), Some(2)));
        assert_eq!((settings.eta, settings.cfg_scale), (Some(0.67), Some(7.5)));
        assert_eq!(settings.other, pairs(&[("ENSD", "31337")]));
        let schedule =
            |line: &str| Settings::parse(&format!("p\nSteps: 1, Seed: 2, {line}")).schedule;
        assert_eq!(schedule("Sampler: Euler a, Schedule type: Automatic"), None);
        assert_eq!(schedule("Sampler: DPM++ 2M Karras, Schedule type: Beta"), word("Beta"));
        assert_eq!(schedule("Schedule type: Beta, Sampler: DPM++ 2M Karras"), word("Beta"));
        assert_eq!(schedule("Sampler: Karras"), None);
    }

    #[test]
    fn what_is_not_of_its_type_is_kept() {
        let settings =
            Settings::parse("p\nSteps: many, Seed: -1, Size: big, CFG scale: NaN, Clip skip: 1");
        assert_eq!(settings.clip_skip, Some(1));
        let other = [("Steps", "many"), ("Seed", "-1"), ("Size", "big"), ("CFG scale", "NaN")];
        assert_eq!(settings.other, pairs(&other));
        assert!(settings.has_fields() && !Settings::parse("only a prompt").has_fields());
    }

    fn name() -> impl Strategy<Value = String> {
        "[A-Za-z0-9_. -]{0,8}".prop_map(|text| format!("n{}", text.trim()))
    }

    proptest! {
        #[test]
        fn settings_survive_their_text(
            prompt in "[a-z(),:1-9 ]{0,30}",
            negative in "[a-z ]{0,20}",
            numbers in (1usize..200, any::<u64>(), 64usize..4096, 64usize..4096, 2usize..12),
            scale in 0.0f64..30.0,
            loras in prop::collection::vec((name(), "[0-9a-f]{10}"), 0..3),
            model in name(),
            note in "\\PC{1,12}",
        ) {
            let settings = Settings {
                prompt: prompt.trim().to_string(),
                negative_prompt: negative.trim().to_string(),
                steps: Some(numbers.0),
                seed: Some(numbers.1),
                size: Some((numbers.2, numbers.3)),
                clip_skip: Some(numbers.4),
                cfg_scale: Some(scale),
                denoising_strength: Some(scale / 30.0),
                sampler: word("DPM++ 2M"),
                schedule: word("Karras"),
                model: Some(model),
                lora_hashes: loras,
                version: word("inknib 0.1.0"),
                other: vec![("A note".to_string(), note)],
                ..Settings::default()
            };
            let text = settings.infotext().to_string();
            prop_assert_eq!(Settings::parse(&text), settings, "{}", text);
        }
    }
}
