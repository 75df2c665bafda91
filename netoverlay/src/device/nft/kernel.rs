//! Transactions with the kernel, and the little that is read back.

use super::{
    Chain, Family, Hook, Ruleset, Set, Table,
    encode::{
        CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, GET_CHAIN, GET_TABLE, HOOK_NUMBER, TABLE_NAME,
        TABLE_USERDATA, Transaction,
    },
};
use crate::device::{
    Result,
    netlink::{NLM_F_DUMP, Socket, Writer, attribute, number, text},
    netns::Netns,
};

/// The packet filter of one namespace. Each change is one transaction: it happens as a whole or not at all,
/// and no packet sees it half done. Calls block for as long as the kernel works, some milliseconds at most.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// Opens the packet filter of `netns`.
    pub fn open(netns: &Netns) -> Result<Self> {
        Ok(Self { socket: Socket::open(netns)? })
    }

    /// Makes each table of the ruleset exactly so, whatever there was; other tables are left alone.
    pub fn replace(&self, ruleset: &Ruleset) -> Result<()> {
        let mut transaction = Transaction::begin();
        for table in &ruleset.tables {
            transaction.replace_table(table, &fingerprint(table));
        }
        if ruleset.tables.is_empty() { Ok(()) } else { self.socket.transact(&transaction.end()) }
    }

    /// As [`Nft::replace`] for one table, but leaves it alone if it was last replaced by the very same.
    /// The flag tells whether anything was sent. Later tampering by others is not noticed.
    pub fn ensure(&self, table: &Table) -> Result<bool> {
        if self.userdata(table.family, &table.name)?.is_some_and(|found| found == fingerprint(table)) {
            return Ok(false);
        }
        let mut transaction = Transaction::begin();
        transaction.replace_table(table, &fingerprint(table));
        self.socket.transact(&transaction.end())?;
        Ok(true)
    }

    /// Replaces the rules of one chain, which must be there.
    pub fn replace_rules(&self, family: Family, table: &str, chain: &Chain) -> Result<()> {
        let mut transaction = Transaction::begin();
        transaction.replace_rules(family, table, chain);
        self.socket.transact(&transaction.end())
    }

    /// Replaces the elements of one set or map, which must be there.
    pub fn replace_elements(&self, family: Family, table: &str, set: &Set) -> Result<()> {
        let mut transaction = Transaction::begin();
        transaction.replace_elements(family, table, set);
        self.socket.transact(&transaction.end())
    }

    /// Deletes a table, if it is there.
    pub fn remove(&self, family: Family, table: &str) -> Result<()> {
        let mut transaction = Transaction::begin();
        transaction.clear_table(family, table);
        self.socket.transact(&transaction.end())
    }

    /// The tables there are, with the notes kept by [`Nft::replace`] or others.
    pub fn tables(&self) -> Result<Vec<(Family, String)>> {
        let mut tables = Vec::new();
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            self.socket.dump(&request(GET_TABLE, family, "list tables"), |attributes| {
                if let Some(name) = attribute(attributes, TABLE_NAME) {
                    tables.push((family, text(name)));
                }
            })?;
        }
        Ok(tables)
    }

    /// The chains that drop forwarded packets by policy, as `table ip filter chain FORWARD`. Rules set by
    /// the old iptables programs (not through nftables) do not show here.
    pub fn forward_drops(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Ip] {
            self.socket.dump(&request(GET_CHAIN, family, "list chains"), |attributes| {
                let hook = attribute(attributes, CHAIN_HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER));
                let drops = attribute(attributes, CHAIN_POLICY).is_some_and(|policy| number(policy) == 0);
                if drops && hook.is_some_and(|hook| number(hook) == Hook::Forward.number()) {
                    let name = |kind| attribute(attributes, kind).map(text).unwrap_or_default();
                    found.push(format!("table {family} {} chain {}", name(CHAIN_TABLE), name(CHAIN_NAME)));
                }
            })?;
        }
        Ok(found)
    }

    fn userdata(&self, family: Family, table: &str) -> Result<Option<Vec<u8>>> {
        let mut found = None;
        self.socket.dump(&request(GET_TABLE, family, "list tables"), |attributes| {
            if attribute(attributes, TABLE_NAME).is_some_and(|name| text(name) == table) {
                found = Some(attribute(attributes, TABLE_USERDATA).unwrap_or_default().to_vec());
            }
        })?;
        Ok(found)
    }
}

fn request(kind: u16, family: Family, label: &str) -> Writer {
    let mut request = Writer::default();
    request.message(kind, NLM_F_DUMP, family.number(), 0, label, |_| {});
    request
}

/// Sixteen bytes kept with the table that change when its text does (128-bit FNV-1a).
fn fingerprint(table: &Table) -> [u8; 16] {
    let hash =
        table.to_string().bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        });
    hash.to_be_bytes()
}
