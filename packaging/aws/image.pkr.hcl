# An AMI with spotd in it, unconfigured: the configuration comes with the user data.
#   packer init . && packer build -var source_ami=ami-... -var package=../../dist/spotd_0.1.0_amd64.deb .
packer {
  required_plugins {
    amazon = { source = "github.com/hashicorp/amazon", version = ">= 1.3.0" }
  }
}

variable "source_ami" { type = string }
variable "package" { type = string }
variable "ssh_username" {
  type    = string
  default = "ubuntu"
}
variable "instance_type" {
  type    = string
  default = "t3.small"
}

source "amazon-ebs" "spotd" {
  ami_name      = "spotd-{{timestamp}}"
  source_ami    = var.source_ami
  instance_type = var.instance_type
  ssh_username  = var.ssh_username
  imds_support  = "v2.0"
  metadata_options {
    http_tokens = "required"
  }
}

build {
  sources = ["source.amazon-ebs.spotd"]

  provisioner "file" {
    source      = var.package
    destination = "/tmp/spotd.deb"
  }
  # An instance of this image is a new machine: no state, no configuration, no instance id of the
  # machine that built it, or cloud-init takes the first boot for a second one.
  provisioner "shell" {
    inline = [
      "cloud-init status --wait || true",
      "sudo apt-get update -q",
      "sudo apt-get install -y /tmp/spotd.deb",
      "sudo rm -rf /tmp/spotd.deb /var/lib/spotd /etc/spotd/spotd.toml",
      "sudo cloud-init clean --logs",
      "sudo truncate -s 0 /etc/machine-id",
      "sync",
    ]
  }
}
