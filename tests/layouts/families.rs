//! Every family in every layout but the folder: whole files and UNets alone, in safetensors and in GGUF, hold
//! what the golden nets' folders hold.

use half::f16;
use inknib::tensor::{Data, Tensor};
use inknib::weights::{ImageFamily, ImageModel, Part, read_tensors};

use crate::writer::{File, Meta, Stored};
use crate::{golden, renamed, safetensors, same_tensors, same_tensors_but};

type Tensors = Vec<(String, Tensor)>;

/// A model of golden nets.
struct Family {
    family: ImageFamily,
    /// The golden case and the list of its names in a file.
    unet: [&'static str; 2],
    /// The text encoders' cases.
    encoders: &'static [(Part, &'static str)],
    inpaint: bool,
    lcm: bool,
}

const FIRST: &[(Part, &str)] = &[(Part::TextEncoder, "clip_l_prefix")];
const FAMILIES: [Family; 5] = [
    Family {
        family: ImageFamily::Sd1,
        unet: ["unet_sd15", "small_unet"],
        encoders: FIRST,
        inpaint: false,
        lcm: false,
    },
    Family {
        family: ImageFamily::Sd2,
        unet: ["unet_sd21", "small_sd21"],
        encoders: &[(Part::TextEncoder, "clip_h")],
        inpaint: false,
        lcm: false,
    },
    Family {
        family: ImageFamily::Sdxl,
        unet: ["unet_sdxl", "small_sdxl"],
        encoders: &[(Part::TextEncoder, "clip_l_prefix"), (Part::TextEncoder2, "clip_g")],
        inpaint: false,
        lcm: false,
    },
    Family {
        family: ImageFamily::Sd1,
        unet: ["unet_lcm", "small_lcm"],
        encoders: FIRST,
        inpaint: true,
        lcm: true,
    },
    // The same net without the guidance scale: nine channels are all that is left of it.
    Family {
        family: ImageFamily::Sd1,
        unet: ["unet_lcm", "small_lcm"],
        encoders: FIRST,
        inpaint: true,
        lcm: false,
    },
];

const COND_PROJ: &str = "time_embedding.cond_proj.weight";

impl Family {
    fn name(&self) -> String {
        format!("{} inpaint {} lcm {}", self.family.name(), self.inpaint, self.lcm)
    }

    /// The UNet under ldm's names. diffusers' converters leave the embedding of the guidance scale out; here it
    /// has the name that the others around it have.
    fn unet(&self) -> Tensors {
        let mut tensors = renamed(self.unet[0], self.unet[1]);
        if self.lcm {
            let all = read_tensors(golden(self.unet[0])).unwrap();
            let cond = all.into_iter().find(|(name, _)| name == COND_PROJ).unwrap().1;
            let name = "model.diffusion_model.time_embed.cond_proj.weight";
            tensors.push((name.to_string(), cond));
        }
        tensors
    }

    /// Text encoders as stable-diffusion.cpp writes them, whatever its own input was: transformers' names, and the
    /// projection as OpenCLIP has it, `[channels, n]`.
    fn encoders(&self) -> Tensors {
        let mut tensors = Vec::new();
        for (part, case) in self.encoders {
            let place = match part {
                Part::TextEncoder => "cond_stage_model.transformer.",
                _ => "cond_stage_model.1.transformer.",
            };
            for (name, tensor) in read_tensors(golden(case)).unwrap() {
                if name.ends_with("position_ids") {
                    continue;
                }
                let bare = name.strip_prefix("text_model.").unwrap_or(&name);
                match bare {
                    "text_projection.weight" => {
                        let name = format!("{place}text_model.text_projection");
                        tensors.push((name, transposed(&tensor)));
                    }
                    _ => tensors.push((format!("{place}text_model.{bare}"), tensor)),
                }
            }
        }
        tensors
    }

    fn check(&self, model: &ImageModel, at: &str) {
        let (kind, name) = (model.kind(), self.name());
        assert_eq!(kind.family, self.family, "{name} {at}");
        assert_eq!((kind.inpaint, kind.lcm), (self.inpaint, self.lcm), "{name} {at}");
        assert!(model.spare().is_empty(), "{name} {at}: {:?}", model.spare());
        let unet = model.store(Part::Unet).unwrap();
        match self.lcm || self.family != ImageFamily::Sd1 || !self.inpaint {
            true => same_tensors(&unet, self.unet[0]),
            false => same_tensors_but(&unet, self.unet[0], COND_PROJ),
        }
        let config = model.config(Part::Unet).unwrap().0;
        let channels = if self.inpaint { 9 } else { 4 };
        assert_eq!(config["in_channels"], channels, "{name} {at}");
        let cond = config["time_cond_proj_dim"].as_u64();
        assert_eq!(cond, self.lcm.then_some(16), "{name} {at}");
        let lcm = model.scheduler().unwrap().0.contains("LCMScheduler");
        assert_eq!(lcm, self.lcm, "{name} {at}");
    }

    fn check_whole(&self, model: &ImageModel, at: &str) {
        self.check(model, at);
        same_tensors(&model.store(Part::Vae).unwrap(), "vae_kl");
        for (part, case) in self.encoders {
            same_tensors(&model.store(*part).unwrap(), case);
        }
    }
}

fn transposed(matrix: &Tensor) -> Tensor {
    let &[n, k] = matrix.shape.as_slice() else { panic!("{:?}", matrix.shape) };
    let values = matrix.to_f32();
    let turned = (0..n * k).map(|i| values[i % n * k + i / n]).collect();
    Tensor { shape: vec![k, n], data: Data::F32(turned) }
}

/// Matrices and convolutions in F16, vectors in F32: what stable-diffusion.cpp and ComfyUI-GGUF write for F16.
fn stored(name: &str, tensor: &Tensor) -> Stored {
    let values = tensor.to_f32();
    let half = tensor.shape.len() > 1;
    let bytes = match half {
        true => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        false => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    Stored { name: name.into(), shape: tensor.shape.clone(), ty: u32::from(half), bytes }
}

fn gguf(tensors: &Tensors) -> File {
    let tensors = tensors.iter().map(|(name, tensor)| stored(name, tensor)).collect();
    File { tensors, ..File::default() }
}

#[test]
fn single_files_of_every_family() {
    for family in &FAMILIES {
        let encoders = family.encoders();
        let whole = [family.unet(), renamed("vae_kl", "small_vae"), encoders].concat();
        let model = ImageModel::from_bytes("whole", safetensors(&whole)).unwrap();
        family.check_whole(&model, "one file");
    }
}

#[test]
fn whole_files_of_stable_diffusion_cpp_of_every_family() {
    for family in &FAMILIES {
        for flat in [false, true] {
            let mut vae = renamed("vae_kl", "small_vae");
            if flat {
                // Newer versions store the attention's 1x1 convolutions as the matrices they are.
                vae.iter_mut()
                    .filter(|(n, t)| n.contains(".attn_1.") && t.shape.len() == 4)
                    .for_each(|(_, tensor)| tensor.shape.truncate(2));
            }
            let whole = [family.unet(), vae, family.encoders()].concat();
            let model = ImageModel::from_bytes("sd.gguf", gguf(&whole).bytes()).unwrap();
            family.check_whole(&model, "stable-diffusion.cpp");
            assert!(model.describe().contains("GGUF"), "{}", model.describe());
        }
    }
}

/// ComfyUI-GGUF keeps the UNet alone, without a prefix, and flattens what does not make whole blocks; the other
/// parts come from other files, a VAE in GGUF among them.
#[test]
fn unets_of_comfyui_gguf_of_every_family() {
    let temp = tempfile::tempdir().unwrap();
    let vae = temp.path().join("vae.gguf");
    std::fs::write(&vae, gguf(&renamed("vae_kl", "small_vae")).bytes()).unwrap();
    for family in &FAMILIES {
        let mut file = gguf(&family.unet());
        let xl = family.family == ImageFamily::Sdxl;
        file.text("general.architecture", if xl { "sdxl" } else { "sd1" });
        let mut flat = 0;
        let mut shapes = Vec::new();
        for tensor in &mut file.tensors {
            tensor.name = tensor.name.strip_prefix("model.diffusion_model.").unwrap().to_string();
            let n: usize = tensor.shape.iter().product();
            if tensor.shape.len() > 1 && n.is_multiple_of(256) {
                let sizes = tensor.shape.iter().map(|&n| n as i32).collect();
                shapes.push((format!("comfy.gguf.orig_shape.{}", tensor.name), Meta::I32s(sizes)));
                tensor.shape = vec![n / 256, 256];
                flat += 1;
            }
        }
        shapes.into_iter().for_each(|(key, value)| file.put(&key, value));
        assert!(flat > 20, "{flat}");
        let model = ImageModel::from_bytes("unet.gguf", file.bytes()).unwrap();
        assert_eq!(model.parts().collect::<Vec<_>>(), [Part::Unet]);
        family.check(&model, "ComfyUI");
        let model = model.with_part(Part::Vae, &vae).unwrap();
        same_tensors(&model.store(Part::Vae).unwrap(), "vae_kl");
    }
}
