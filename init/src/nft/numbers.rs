//! Numbers of the kernel's interface (`linux/netfilter/nf_tables.h`, `nfnetlink.h`); stable by its promise to programs.

/// Message types: nf_tables is subsystem 10.
pub(super) mod msg {
    const NFTABLES: u16 = 10 << 8;
    pub(crate) const BATCH_BEGIN: u16 = 0x10;
    pub(crate) const BATCH_END: u16 = 0x11;
    pub(crate) const NEW_TABLE: u16 = NFTABLES;
    pub(crate) const DELETE_TABLE: u16 = NFTABLES | 2;
    pub(crate) const NEW_CHAIN: u16 = NFTABLES | 3;
    pub(crate) const GET_CHAIN: u16 = NFTABLES | 4;
    pub(crate) const NEW_RULE: u16 = NFTABLES | 6;
    pub(crate) const GET_RULE: u16 = NFTABLES | 7;
}

/// Subsystem number, in the header of a batch.
pub(super) const SUBSYSTEM: u16 = 10;

/// Attributes, one module for each enum of the header.
pub(super) mod attr {
    pub(crate) mod table {
        pub(crate) const NAME: u16 = 1;
    }
    pub(crate) mod chain {
        pub(crate) const TABLE: u16 = 1;
        pub(crate) const NAME: u16 = 3;
        pub(crate) const HOOK: u16 = 4;
        pub(crate) const POLICY: u16 = 5;
        pub(crate) const TYPE: u16 = 7;
    }
    pub(crate) mod hook {
        pub(crate) const NUMBER: u16 = 1;
        pub(crate) const PRIORITY: u16 = 2;
    }
    pub(crate) mod rule {
        pub(crate) const TABLE: u16 = 1;
        pub(crate) const CHAIN: u16 = 2;
        pub(crate) const EXPRESSIONS: u16 = 4;
        pub(crate) const USERDATA: u16 = 7;
    }
    pub(crate) mod list {
        pub(crate) const ELEMENT: u16 = 1;
    }
    pub(crate) mod expr {
        pub(crate) const NAME: u16 = 1;
        pub(crate) const DATA: u16 = 2;
    }
    pub(crate) mod data {
        pub(crate) const VALUE: u16 = 1;
        pub(crate) const VERDICT: u16 = 2;
    }
    pub(crate) mod verdict {
        pub(crate) const CODE: u16 = 1;
        pub(crate) const CHAIN: u16 = 2;
    }
    pub(crate) mod meta {
        pub(crate) const DREG: u16 = 1;
        pub(crate) const KEY: u16 = 2;
    }
    pub(crate) mod ct {
        pub(crate) const DREG: u16 = 1;
        pub(crate) const KEY: u16 = 2;
        pub(crate) const SREG: u16 = 4;
    }
    pub(crate) mod payload {
        pub(crate) const DREG: u16 = 1;
        pub(crate) const BASE: u16 = 2;
        pub(crate) const OFFSET: u16 = 3;
        pub(crate) const LEN: u16 = 4;
    }
    pub(crate) mod bitwise {
        pub(crate) const SREG: u16 = 1;
        pub(crate) const DREG: u16 = 2;
        pub(crate) const LEN: u16 = 3;
        pub(crate) const MASK: u16 = 4;
        pub(crate) const XOR: u16 = 5;
    }
    pub(crate) mod cmp {
        pub(crate) const SREG: u16 = 1;
        pub(crate) const OP: u16 = 2;
        pub(crate) const DATA: u16 = 3;
    }
    pub(crate) mod immediate {
        pub(crate) const DREG: u16 = 1;
        pub(crate) const DATA: u16 = 2;
    }
    pub(crate) mod redir {
        pub(crate) const PORT_MIN: u16 = 1;
    }
}

/// `NFT_REG_VERDICT`
pub(super) const REG_VERDICT: u32 = 0;
/// `NFT_REG_1`, the one register that our rules need.
pub(super) const REG: u32 = 1;

pub(super) const META_OIF: u32 = 5;
pub(super) const META_IIFNAME: u32 = 6;
pub(super) const META_OIFNAME: u32 = 7;
pub(super) const META_SKUID: u32 = 10;
pub(super) const META_L4PROTO: u32 = 16;

pub(super) const CT_STATE: u32 = 0;
pub(super) const CT_ZONE: u32 = 17;
/// `NF_CT_STATE_INVALID_BIT`
pub(super) const CT_STATE_INVALID: u32 = 1;

pub(super) const PAYLOAD_NETWORK: u32 = 1;
pub(super) const PAYLOAD_TRANSPORT: u32 = 2;

pub(super) const CMP_EQUAL: u32 = 0;
pub(super) const CMP_NOT_EQUAL: u32 = 1;

/// Verdicts: negative ones are nf_tables' own, written as two's complement.
pub(super) const VERDICT_DROP: u32 = 0;
pub(super) const VERDICT_GOTO: u32 = (-4i32).cast_unsigned();
pub(super) const VERDICT_RETURN: u32 = (-5i32).cast_unsigned();
/// `NF_ACCEPT`, the policy of our chains.
pub(super) const ACCEPT: u32 = 1;

pub(super) const PROTO_TCP: u8 = 6;
pub(super) const PROTO_UDP: u8 = 17;
/// Index of `lo`: the first interface of every network namespace (`LOOPBACK_IFINDEX`).
pub(crate) const LOOPBACK_INDEX: u32 = 1;
/// `IFNAMSIZ`
pub(super) const INTERFACE_NAME_BYTES: usize = 16;
/// `NFTNL_UDATA_RULE_COMMENT`: how the `nft` program keeps a rule's comment.
pub(super) const USERDATA_COMMENT: u8 = 0;
