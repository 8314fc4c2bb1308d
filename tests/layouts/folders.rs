//! diffusers' folders.

use std::path::{Path, PathBuf};

use inknib::text::tokenizer::ClipTokenizer;
use inknib::weights::{ImageFamily, ImageModel, Part, Vocabulary};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo-scenes")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => std::fs::copy(entry.path(), target).map(drop).unwrap(),
        }
    }
}

#[test]
fn a_folder_has_its_parts() {
    let model = ImageModel::open(demo()).unwrap();
    let parts: Vec<Part> = model.parts().collect();
    assert_eq!(parts, [Part::TextEncoder, Part::Unet, Part::Vae]);
    for part in parts {
        assert!(model.store(part).unwrap().names().count() > 10);
        let (config, source) = model.config(part).unwrap();
        assert!(config.is_object() && source.ends_with("config.json"));
    }
    assert!(model.scheduler().unwrap().0.contains("num_train_timesteps"));
    assert_eq!(model.vocabulary(Part::TextEncoder), Vocabulary::Folder(demo().join("tokenizer")));
    assert!(ClipTokenizer::of(&model, Part::TextEncoder).unwrap().length() > 2);
    let e = model.store(Part::TextEncoder2).unwrap_err();
    assert!(e.exit_code() == 4 && e.to_string().contains("no second text encoder"), "{e}");
    assert!(model.describe().contains("diffusers folder: UNet, VAE, text encoder"));
}

#[test]
fn pipelines_and_variants() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("model");
    copy(&demo(), &folder);
    let index = folder.join("model_index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    for class in ["StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline"] {
        std::fs::write(&index, text.replace("StableDiffusionPipeline", class)).unwrap();
        assert_eq!(ImageModel::open(&folder).unwrap().kind().family, ImageFamily::Sd1);
    }
    let weights = |name: &str| folder.join("unet").join(name);
    let whole = ImageModel::open(&folder).unwrap().store(Part::Unet).unwrap().sha256();
    let names = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
    std::fs::rename(weights(names[0]), weights(names[1])).unwrap();
    assert_eq!(ImageModel::open(&folder).unwrap().store(Part::Unet).unwrap().sha256(), whole);
    std::fs::remove_dir_all(folder.join("tokenizer")).unwrap();
    let model = ImageModel::open(&folder).unwrap();
    assert_eq!(
        model.vocabulary(Part::TextEncoder),
        Vocabulary::Clip { pad: "<|endoftext|>" },
        "without a tokenizer it is CLIP's own"
    );
    std::fs::remove_file(folder.join("vae/config.json")).unwrap();
    let e = ImageModel::open(&folder).unwrap_err().to_string();
    assert!(e.contains("no vae/config.json"), "{e}");
    let vae = ImageModel::open(demo()).unwrap().with_part(Part::Vae, demo().join("vae")).unwrap();
    assert!(vae.store(Part::Vae).unwrap().contains("decoder.conv_in.weight"));
}
