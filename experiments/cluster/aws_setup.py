"""What `cluster.yaml` needs in an AWS account, made once: a security group, a bucket, two instance profiles.

    python experiments/cluster/aws_setup.py --region us-west-2 --bucket BUCKET --ssh-from 203.0.113.7/32

Run again it changes nothing but the addresses that may use ssh. Nothing here costs anything while the bucket
is empty.

- The group, in the default VPC: port 22 from ``--ssh-from``, and every port between its own members.
- The bucket: private, encrypted, for ``--results s3://BUCKET/...``. One that is there already, and is yours,
  is used as it is.
- ``autolr-ray-head``: may start, tag and end machines (end only those that Ray tagged), hand them the
  worker's role, and use the bucket. ``autolr-ray-worker``: may use the bucket.

Ray's own default for the head may do everything in EC2 and S3, and workers get none.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import re
from typing import Any

import boto3
from botocore.exceptions import ClientError

NAME = "autolr-ray"
_ASSUME = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}


def security_group(ec2: Any, sources: list[str]) -> str:
    """The group's id; afterwards port 22 is open to exactly ``sources``."""
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    wanted = [{"Name": "group-name", "Values": [NAME]}, {"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    found = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    if found:
        group_id, rules = found[0]["GroupId"], found[0]["IpPermissions"]
    else:
        made = ec2.create_security_group(
            GroupName=NAME, Description="ssh from known addresses, and its own members", VpcId=vpc["VpcId"]
        )
        group_id, rules = made["GroupId"], []
    if rules:
        ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=rules)
    key = {4: ("IpRanges", "CidrIp"), 6: ("Ipv6Ranges", "CidrIpv6")}
    addresses: dict[str, list[dict[str, str]]] = {}
    for source in sources:
        ranges, address = key[ipaddress.ip_network(source).version]
        addresses.setdefault(ranges, []).append({address: source})
    ec2.authorize_security_group_ingress(
        GroupId=group_id,
        IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **addresses},
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group_id}]},
        ],
    )
    return str(group_id)


def bucket(s3: Any, name: str, region: str) -> None:
    """A private bucket of that name, made unless it is there."""
    try:
        s3.head_bucket(Bucket=name)
        return
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise SystemExit(f"--bucket: {name!r} cannot be used ({error})") from error
    # AWS refuses the name of its first region here.
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=name, **where)
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))


def profile(iam: Any, name: str, statements: list[dict[str, Any]]) -> str:
    """An instance profile with a role of the same name that may do just ``statements``; the role's ARN."""
    try:
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(_ASSUME))["Role"]
    except iam.exceptions.EntityAlreadyExistsException:
        role = iam.get_role(RoleName=name)["Role"]
    policy = {"Version": "2012-10-17", "Statement": statements}
    iam.put_role_policy(RoleName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
    with contextlib.suppress(iam.exceptions.EntityAlreadyExistsException):
        iam.create_instance_profile(InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(role["Arn"])


def use_of_bucket(name: str) -> list[dict[str, Any]]:
    """The statements that allow results to be listed, read, written and replaced."""
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    whole = ["s3:ListBucket", "s3:GetBucketLocation"]
    return [
        {"Effect": "Allow", "Action": objects, "Resource": f"arn:aws:s3:::{name}/*"},
        {"Effect": "Allow", "Action": whole, "Resource": f"arn:aws:s3:::{name}"},
    ]


def use_of_machines(worker_role: str) -> list[dict[str, Any]]:
    """The statements that Ray's autoscaler on the head needs."""
    tagged = {"StringLike": {"aws:ResourceTag/ray-cluster-name": "*"}}
    spot = {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
    return [
        {
            "Effect": "Allow",
            "Action": ["ec2:Describe*", "ec2:RunInstances", "ec2:CreateTags"],
            "Resource": "*",
        },
        {"Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "*", "Condition": tagged},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": worker_role},
        {"Effect": "Allow", "Action": "iam:CreateServiceLinkedRole", "Resource": "*", "Condition": spot},
    ]


def networks(text: str) -> str:
    """An address range that is not the whole world, as ``ADDRESS/BITS``."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; ADDRESS/BITS is needed") from error
    if network.prefixlen == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it opens port 22 to the whole world")
    return str(network)


def bucket_name(text: str) -> str:
    """A name that S3 allows."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; 3 to 63 of a-z, 0-9, '.', '-' are needed")
    return text


def main(arguments: list[str] | None = None) -> None:
    """Command line; prints what to write into ``cluster.yaml``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--region", default="us-west-2", help="(default: %(default)s)")
    parser.add_argument("--bucket", required=True, type=bucket_name, help="bucket for results")
    parser.add_argument("--ssh-from", required=True, nargs="+", type=networks, metavar="ADDRESS/BITS")
    options = parser.parse_args(arguments)
    s3, iam, ec2 = (boto3.client(name, region_name=options.region) for name in ("s3", "iam", "ec2"))
    bucket(s3, options.bucket, options.region)
    storage = use_of_bucket(options.bucket)
    worker_role = profile(iam, f"{NAME}-worker", storage)
    profile(iam, f"{NAME}-head", storage + use_of_machines(worker_role))
    print(f"security_groups: &security_groups [{security_group(ec2, options.ssh_from)}]")
    print(f"--results s3://{options.bucket}/studies")


if __name__ == "__main__":
    main()
