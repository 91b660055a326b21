//! The guest's kernel and initramfs, made by the recipe in `images/`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use test_support::programs::{self, program};
use test_support::tool::Tool;

/// What a guest boots.
#[derive(Clone, Debug)]
pub struct GuestImage {
    /// Debian's cloud kernel.
    pub kernel: PathBuf,
    /// The initramfs that `images/build.sh` made.
    pub initramfs: PathBuf,
}

/// What the initramfs holds beside busybox, the network driver and `/init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing: enough to see whether a virtual machine starts at all.
    Bare,
    /// `vrot-service`.
    Service,
    /// `vrot-service` and tpm2-tools, for tests that use stock tools in the guest.
    ServiceAndTools,
}

/// A guest that reaches its TPM over virtio-i2c.
#[derive(Clone, Debug)]
pub struct I2cGuest {
    /// Debian's kernel that has I2C, and tpm2-tools.
    pub image: GuestImage,
    /// The table by which the guest finds the TPM behind the device in slot 0x10.
    pub acpi_table: PathBuf,
}

impl I2cGuest {
    /// Builds the image with the two drivers that Debian leaves out, or finds it built.
    pub fn build() -> Result<Self> {
        Self::with("i2c", Path::new("none"), &[])
    }

    /// The same with `vrot-service`.
    pub fn with_service() -> Result<Self> {
        Self::with("i2c-service", &program("vrot-service")?, &[])
    }

    /// The same with `tpm-timer`, which says how long the TPM takes, behind whatever device.
    pub fn with_timer() -> Result<Self> {
        let timer = program("tpm-timer")?;
        Self::with("i2c-timer", Path::new("none"), &[("--add", &timer)])
    }

    fn with(name: &str, service: &Path, more: &[More<'_>]) -> Result<Self> {
        let place = Place::locked()?;
        let kernel = place.usual_kernel()?;
        let image = place.with_tools(&kernel, name, service, more)?;
        let acpi_table = kernel.join("tpm-i2c.aml");
        Ok(Self { image, acpi_table })
    }

    /// What QEMU needs beside the device: the guest's memory shared, and the table that tells the
    /// guest where its TPM is.
    pub fn surroundings(&self) -> Vec<String> {
        let table = format!("file={}", self.acpi_table.display());
        let memory = "memory-backend-memfd,id=ram,size=512M,share=on";
        let words = [
            ["-machine", "memory-backend=ram"],
            ["-object", memory],
            ["-acpitable", &table],
        ];
        let words = words.as_flattened().iter();
        words.map(|word| (*word).to_owned()).collect()
    }
}

/// An option of the recipe with what it adds.
type More<'m> = (&'m str, &'m Path);

/// Where images are made, by one process at a time.
struct Place {
    folder: PathBuf,
    recipe: PathBuf,
    _lock: Flock<File>,
}

impl Place {
    fn locked() -> Result<Self> {
        let folder = programs::target_folder()?.join("images");
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let lock = exclusive(&folder)?;
        let recipe = programs::workspace_folder()?.join("images");
        Ok(Self {
            folder,
            recipe,
            _lock: lock,
        })
    }

    /// Debian's kernel for machines of all kinds, with modules that it leaves out.
    fn usual_kernel(&self) -> Result<PathBuf> {
        let kernel = self.folder.join("kernel-i2c");
        Tool::new(self.recipe.join("kernel.sh"))
            .arg(&kernel)
            .arg("linux-image-amd64")
            .run()?;
        Tool::new(self.recipe.join("drivers.sh"))
            .arg(&kernel)
            .run()?;
        Ok(kernel)
    }

    /// An image with tpm2-tools and more.
    fn with_tools(
        &self,
        kernel: &Path,
        name: &str,
        service: &Path,
        more: &[More<'_>],
    ) -> Result<GuestImage> {
        let initramfs = self.folder.join(format!("{name}.cpio.gz"));
        let mut build = Tool::new(self.recipe.join("build.sh"))
            .arg("--kernel")
            .arg(kernel)
            .arg("--service")
            .arg(service)
            .args(["--tools", "--output"])
            .arg(&initramfs);
        for (option, added) in more {
            build = build.arg(option).arg(added);
        }
        build.run()?;
        Ok(GuestImage {
            kernel: kernel.join("vmlinuz"),
            initramfs,
        })
    }
}

impl GuestImage {
    /// Builds an image for what Linux itself does with a TPM: tpm2-tools, trusted keys with
    /// `linux-calls` to use them (`images/linux-calls.c`), and its own kernel to start another one.
    pub fn of_linux() -> Result<Self> {
        let place = Place::locked()?;
        let kernel = place.usual_kernel()?;
        let more = tempfile::tempdir_in(&place.folder)?;
        let [programs, modules, boot] =
            ["usr/bin", "lib/modules", "boot"].map(|folder| more.path().join(folder));
        for folder in [&programs, &modules, &boot] {
            fs::create_dir_all(folder)?;
        }
        Tool::new("cc")
            .args(["-O2", "-Wall", "-static", "-s", "-o"])
            .arg(programs.join("linux-calls"))
            .arg(place.recipe.join("linux-calls.c"))
            .run()?;
        for module in ["asn1_encoder.ko", "trusted.ko"] {
            fs::copy(kernel.join("keys").join(module), modules.join(module))?;
        }
        fs::copy(kernel.join("vmlinuz"), boot.join("vmlinuz"))?;
        place.with_tools(
            &kernel,
            "linux",
            Path::new("none"),
            &[("--with", more.path())],
        )
    }

    /// Builds the image, or finds it built: the recipe is quick and gives the same bytes for the
    /// same inputs, so it simply runs each time.
    pub fn build(contents: Contents) -> Result<Self> {
        let place = Place::locked()?;
        let Place { folder, recipe, .. } = &place;
        let kernel = folder.join("kernel");
        Tool::new(recipe.join("kernel.sh")).arg(&kernel).run()?;

        let (name, service) = match contents {
            Contents::Bare => ("bare", PathBuf::from("none")),
            Contents::Service => ("service", program("vrot-service")?),
            Contents::ServiceAndTools => ("service-and-tools", program("vrot-service")?),
        };
        let initramfs = folder.join(format!("{name}.cpio.gz"));
        let mut build = Tool::new(recipe.join("build.sh"))
            .arg("--kernel")
            .arg(&kernel)
            .arg("--service")
            .arg(&service)
            .arg("--output")
            .arg(&initramfs);
        if contents == Contents::ServiceAndTools {
            build = build.arg("--tools");
        }
        build.run()?;
        Ok(Self {
            kernel: kernel.join("vmlinuz"),
            initramfs,
        })
    }
}

/// Tests run beside each other, and other runs may be under way: one builds at a time.
fn exclusive(folder: &Path) -> Result<Flock<File>> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_inputs_give_the_same_image() -> Result<()> {
        let image = GuestImage::build(Contents::Bare)?;
        let first = fs::read(&image.initramfs)?;
        let again = GuestImage::build(Contents::Bare)?;
        assert!(first == fs::read(&again.initramfs)?);
        Ok(())
    }
}
