# One persistent Spot instance with stop behaviour that trains under spotd.
#   spotd user-data --package s3://BUCKET/PREFIX/spotd.deb > user-data.yaml
#   terraform apply -var run=mono-to-3d -var bucket=my-bucket -var ami=ami-... -var user_data=user-data.yaml
terraform {
  required_providers {
    aws = { source = "hashicorp/aws", version = ">= 5.0" }
  }
}

variable "run" { type = string }
variable "bucket" { type = string }
variable "prefix" {
  type    = string
  default = "training"
}
variable "ami" { type = string }
variable "user_data" { type = string }
variable "instance_type" {
  type    = string
  default = "g5.xlarge"
}
variable "subnet" {
  type    = string
  default = null
}
variable "root_gigabytes" {
  type    = number
  default = 100
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "trainer" {
  name_prefix        = "spotd-"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

# A line on each action: iam-policy.md. The statement for SNS is left out: no topic here.
resource "aws_iam_role_policy" "trainer" {
  role = aws_iam_role.trainer.id
  policy = jsonencode(merge(local.policy, {
    Statement = [for s in local.policy.Statement : s if s.Sid != "TellSomebody"]
  }))
}

locals {
  named = replace(replace(replace(file("${path.module}/iam-policy.json"),
  "BUCKET", var.bucket), "PREFIX", var.prefix), "\"RUN\"", jsonencode(var.run))
  policy = jsondecode(local.named)
}

resource "aws_iam_instance_profile" "trainer" {
  name_prefix = "spotd-"
  role        = aws_iam_role.trainer.name
}

resource "aws_instance" "trainer" {
  ami                  = var.ami
  instance_type        = var.instance_type
  subnet_id            = var.subnet
  iam_instance_profile = aws_iam_instance_profile.trainer.name
  user_data            = file(var.user_data)

  # No price limit: a low one means more interruptions, and on-demand is never exceeded.
  instance_market_options {
    market_type = "spot"
    spot_options {
      spot_instance_type             = "persistent"
      instance_interruption_behavior = "stop"
    }
  }
  instance_initiated_shutdown_behavior = "stop"

  # The root volume survives a stop; instance store would not.
  root_block_device {
    volume_size = var.root_gigabytes
    volume_type = "gp3"
  }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  tags = { Name = "spotd-${var.run}", "spotd:run" = var.run }

  # New user data is no reason to lose a disk with checkpoints on it.
  lifecycle {
    ignore_changes = [user_data, ami]
  }
}

resource "aws_ec2_tag" "request" {
  resource_id = aws_instance.trainer.spot_instance_request_id
  key         = "spotd:run"
  value       = var.run
}

# Terminating the instance of a persistent request re-opens the request, and EC2 launches another
# one (terraform-provider-aws issue 38142). So the request is cancelled first, at destroy.
resource "terraform_data" "cancel" {
  input = aws_instance.trainer.spot_instance_request_id
  provisioner "local-exec" {
    when    = destroy
    command = "aws ec2 cancel-spot-instance-requests --spot-instance-request-ids ${self.input}"
  }
}

output "instance" { value = aws_instance.trainer.id }
output "spot_request" { value = aws_instance.trainer.spot_instance_request_id }
